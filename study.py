"""Run a study: ``python study.py study=scenes budget=coffee``, the same as ``triptych study ...``."""

from launch.commands.study import start

if __name__ == "__main__":
    start()
