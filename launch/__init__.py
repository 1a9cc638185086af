"""The Hydra side that the entry scripts share: command lines, run folders, building objects, evaluating, recording."""

import warnings

# Notices of one library to another, which a user of the command line can do nothing about.
for message in (r".*treespec.*", r"`torch\.jit\.script` is deprecated"):
    warnings.filterwarnings("ignore", message=message)
