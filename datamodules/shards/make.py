"""Packs a folder tree of images into tar shards for ``data=webdataset``; the files go in as they are.

    python -m datamodules.shards.make FOLDER OUTPUT [--prefix train] [--per-shard 5000] [--labels]

The files are mixed first, so that a shard is a fair sample of the set. With ``--labels`` each image gets the number of its
subfolder, in the order of their names (data.label_key=cls).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import torch

from datamodules.image_folder import image_files
from files.packages import needed
from files.words import count, named
from generative.randomness import generator_for


def make_shards(folder: Path, output: Path, prefix: str, per_shard: int, labels: bool) -> list[str]:
    """Write the shards ``<prefix>-000000.tar``, ``<prefix>-000001.tar``, ...: all of them or none.

    Args:
        folder: Folder of images.
        output: Folder of the shards, outside of ``folder``, without shards of this prefix.
        prefix: Beginning of their names.
        per_shard: Images in each.
        labels: Whether images get the number of their subfolder.

    Returns:
        Names of the subfolders in the order of their numbers; without labels, none.

    Raises:
        ValueError: If shards of another set would be among these, an image has no label, or a setting cannot be used.
    """
    with needed("webdataset", extra="webdataset", by="writing shards"):
        from webdataset import ShardWriter

    if not re.fullmatch(r"[\w.-]+", prefix) or prefix.startswith("."):
        raise ValueError(f"--prefix {prefix} is no beginning of a file name: use letters, digits, -, . and _")
    if per_shard < 1:
        raise ValueError(f"--per-shard {per_shard} must be at least 1")
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{output} lies inside {folder}: write the shards to a folder outside of the images")
    if present := sorted(output.glob(f"{prefix}-*.tar")):
        raise ValueError(
            f"{output} has shards named {prefix}- already ({named([path.name for path in present])}): remove them, or choose "
            "another folder or --prefix"
        )
    files = image_files(folder)
    class_of = {file: file.relative_to(folder).parts for file in files}
    if labels and (stray := [str(file) for file, parts in class_of.items() if len(parts) == 1]):
        raise ValueError(
            f"{count(len(stray), 'image')} in no subfolder that would be the label ({named(stray)}): move them, or leave out "
            "--labels"
        )
    classes = sorted({parts[0] for parts in class_of.values()}) if labels else []
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".shards.") as temporary:
        pattern = f"{temporary}/{prefix}".replace("%", "%%") + "-%06d.tar"
        with ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
            order = torch.randperm(len(files), generator=generator_for(0, "shards")).tolist()
            for number, file in enumerate(files[i] for i in order):
                sample: dict[str, str | bytes | int] = {
                    "__key__": f"{number:09d}",
                    file.suffix[1:].lower(): file.read_bytes(),
                }
                if labels:
                    sample["cls"] = classes.index(class_of[file][0])
                writer.write(sample)
        for shard in sorted(Path(temporary).iterdir()):
            shard.replace(output / shard.name)
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
    except (OSError, ValueError) as error:
        reason = f"{options.output}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
        print(f"error: {reason}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    for number, name in enumerate(classes):
        print(number, name)  # noqa: T201


if __name__ == "__main__":
    main()
