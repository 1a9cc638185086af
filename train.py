"""Train an experiment: ``python train.py experiment=meanflow_dit``, the same as ``triptych train ...``."""

from launch.commands.train import start

if __name__ == "__main__":
    start()
