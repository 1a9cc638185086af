"""Try trained runs on a page of this machine: ``python demo.py run=RUN``, the same as ``triptych demo ...``."""

from launch.commands.demo import start

if __name__ == "__main__":
    start()
