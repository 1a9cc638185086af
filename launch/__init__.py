"""The Hydra side that the entry scripts share: command lines, run folders, building objects, evaluating, recording."""
