"""Packs a folder tree of images into tar shards for ``data=webdataset``; the files go in as they are.

    python -m datamodules.make_shards FOLDER OUTPUT [--prefix train] [--per-shard 5000] [--labels]

The files are mixed first, so that a shard is a fair sample of the set. With ``--labels`` each image gets the number of its
subfolder, in the order of their names (data.label_key=cls).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from datamodules.image_folder import image_files
from generative.randomness import generator_for


def make_shards(folder: Path, output: Path, prefix: str, per_shard: int, labels: bool) -> list[str]:
    """Write the shards ``<prefix>-000000.tar``, ``<prefix>-000001.tar``, ...

    Args:
        folder: Folder of images.
        output: Folder of the shards.
        prefix: Beginning of their names.
        per_shard: Images in each.
        labels: Whether images get the number of their subfolder.

    Returns:
        Names of the subfolders in the order of their numbers; without labels, none.
    """
    from webdataset import ShardWriter

    files = image_files(folder, leave_out=[output])
    classes = sorted({file.relative_to(folder).parts[0] for file in files}) if labels else []
    output.mkdir(parents=True, exist_ok=True)
    with ShardWriter(str(output / f"{prefix}-%06d.tar"), maxcount=per_shard, verbose=0) as writer:
        order = torch.randperm(len(files), generator=generator_for(0, "shards")).tolist()
        for number, file in enumerate(files[i] for i in order):
            sample: dict[str, str | bytes | int] = {
                "__key__": f"{number:09d}",
                file.suffix[1:].lower(): file.read_bytes(),
            }
            if labels:
                sample["cls"] = classes.index(file.relative_to(folder).parts[0])
            writer.write(sample)
    return classes


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prefix", default="train")
    parser.add_argument("--per-shard", type=int, default=5000)
    parser.add_argument("--labels", action="store_true")
    options = parser.parse_args()
    try:
        classes = make_shards(options.folder, options.output, options.prefix, options.per_shard, options.labels)
    except OSError as error:
        sys.exit(f"error: {error}")
    for number, name in enumerate(classes):
        print(number, name)  # noqa: T201


if __name__ == "__main__":
    main()
