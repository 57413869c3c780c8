"""Complete the commands in a shell: ``dftracer-flow completion``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.cli.output import NAME

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "completion",
        help="print what completes these commands in a shell",
        description="Print a script for a shell. For bash and zsh, in what the shell reads when it "
        f'starts: eval "$({NAME} completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ImportError(
            "completion needs 'shtab': pip install 'dftracer-asyncflow[completion]'"
        ) from None
    library: Any = shtab
    print(library.complete(given.parser, given.shell))
    return 0
