"""`uv run`, `poetry run` and their like in start commands: the packages are there, the tool is not. Pure."""

RUNNERS = frozenset({"uv", "poetry", "pdm", "pipenv"})
"""Tools whose `run` start commands use."""
_WITH_VALUE = (
    *("--with", "--with-editable", "--with-requirements", "--extra", "--no-extra", "--group", "--no-group"),
    *("--only-group", "--package", "--python", "-p", "--env-file", "--index", "--default-index", "--directory"),
    *("--project", "-P", "-C", "--venv"),
)


def runner_script(tool: str) -> str:
    """Return a program that stands for the tool in an image: it becomes the command of `run` and knows nothing else.

    Args:
        tool: One of `RUNNERS`.
    """
    return f"""#!/bin/sh
# Start commands may say `{tool} run COMMAND`. The packages of the project are on PATH already.
if [ "${{1-}}" = run ]; then
  shift
  while [ $# -gt 0 ]; do
    case "$1" in
      -m | --module) shift; exec python -m "$@" ;;
      --) shift; break ;;
      {" | ".join(_WITH_VALUE)}) shift; [ $# -eq 0 ] || shift ;;
      -*) shift ;;
      *.py) exec python "$@" ;;
      *) break ;;
    esac
  done
  [ $# -eq 0 ] || exec "$@"
fi
echo "{tool} is not part of the image: only '{tool} run COMMAND' works here" >&2
exit 127
"""
