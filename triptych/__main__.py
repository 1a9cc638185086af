"""``python -m triptych``: the same as the console command ``triptych``."""

from launch.commands import main

if __name__ == "__main__":
    main()
