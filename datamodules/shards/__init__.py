"""Images in tar shards: fetching and keeping them, their index, reading, and writing them from a folder."""
