"""Networks that judge images: the label classifier and the perceptual distance."""
