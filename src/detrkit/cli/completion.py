"""Shell completion: the scripts of cyclopts, with file names where they have nothing to offer."""

import re
from pathlib import Path
from typing import Literal

import cyclopts

from detrkit.errors import ConfigError, arg

Shell = Literal["bash", "zsh", "fish", "powershell"]
# bash: readline completes file names better than `compgen -f` does, which knows neither folders nor spaces
_BASH_FILES = re.compile(r'COMPREPLY=\( \$\(compgen -f -- "\$\{cur\}"\) \)')
# zsh: a positional argument without an action
_ZSH_POSITIONAL = re.compile(r"^( +'\d+:(?:[^':\\]|\\.|'\\'')*)'", re.MULTILINE)


class App(cyclopts.App):
    """Application whose completion scripts offer file names for arguments that are a path or the name of a model."""

    def generate_completion(self, *, prog_name: str | None = None, shell: Shell | None = None) -> str:
        """Return the script of a shell; by default, of the one that started the process."""
        shell = shell or _detect_shell()
        script = super().generate_completion(prog_name=prog_name, shell=shell)
        if shell == "bash":
            return _BASH_FILES.sub("COMPREPLY=()", script).replace("\ncomplete -F ", "\ncomplete -o default -F ")
        return _ZSH_POSITIONAL.sub(r"\1:_files'", script) if shell == "zsh" else script


def install_completion(*, shell: Shell | None = None) -> None:
    """Install completion of commands, options and file names in your shell.

    Writes a script below the home folder; bash, zsh and PowerShell load it from their start-up file, to which a line is
    added.

    Parameters
    ----------
    shell
        The shell; by default, the one that started this command.
    """
    from detrkit._internal.home import has_home
    from detrkit.cli import build_app
    from detrkit.cli.console import get_console

    if not has_home():
        raise ConfigError("there is no home folder to write the completion script to; set HOME to a folder")
    shell = shell or _detect_shell()
    script: Path = build_app().install_completion(shell=shell)
    get_console().print(f"completion for {shell} is installed: {script}\nIt works in new shells.", soft_wrap=True)


def _detect_shell() -> Shell:
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    try:
        return detect_shell()
    except ShellDetectionError:
        raise ConfigError(f"the shell is unknown; pass {arg('shell')} bash, zsh, fish or powershell") from None
