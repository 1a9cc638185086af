"""Run a study: ``python study.py study=scenes budget=coffee``."""

from __future__ import annotations

import sys

from launch.command_line import show_help, split_flags
from launch.commands.compare import compare
from launch.errors import JobFailedError, UserError, reported
from launch.options import described, options_of
from launch.study.runner import StudyRunner
from launch.study.settings import read_settings

USAGE = """Usage: python study.py study=NAME budget=NAME [name=NAME] [output=DIR] [side_by_side=N] [key=VALUE ...]

Trains every paradigm on every task with equal seconds of one thread, evaluates them and lays them side by side on one page:
DIR/NAME/NAME.html and NAME.csv, with all runs below DIR/NAME. Started again, also after a kill at any moment, the same command
continues: what is done is not done again, and the results are those of a study that was not stopped, to the last bit.

Studies (study=NAME):
{studies}

Budgets (budget=NAME):
{budgets}

  name          its folder, STUDY_BUDGET by default; the folder of other settings is refused
  output        outputs/studies by default
  side_by_side  processes at a time, of one thread each; 2 by default
  key=VALUE     other settings of conf/study/ and conf/budget/, such as budget.seconds=60, budget.seeds=[0,1] or
                ~study.paradigms.ddpm, which leaves a row out

  python study.py study=scenes budget=coffee
  python study.py study=truth budget=coffee name=truth_of_gauss ~study.data.mixture"""


def study(arguments: list[str]) -> None:
    """Run a study, or what is left of it, and write its page."""
    settings = read_settings(split_flags(arguments, {})[1])
    runner = StudyRunner(settings)
    failure = None
    try:
        runner.run()
    except JobFailedError as error:
        failure = error  # the page says which run failed
    try:
        compare([f"runs={settings.folder}", f"name={settings.folder.name}", f"output={settings.folder}"])
    except UserError:
        if failure is None:
            raise
    if failure:
        raise failure


def usage() -> str:
    """Return what ``--help`` prints."""
    listed = [
        "\n".join(f"  {name:<12}  {described(group, name)}" for name in options_of(group))
        for group in ("study", "budget")
    ]
    return USAGE.format(studies=listed[0], budgets=listed[1])


def start() -> None:
    """Run the command line of this process."""
    with reported():
        show_help(sys.argv[1:], usage)
        study(sys.argv[1:])


if __name__ == "__main__":
    start()
