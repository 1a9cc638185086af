"""Lightning data modules: uint8 images in memory, fetched by batches of indices, finished on the device."""
