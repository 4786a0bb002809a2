"""The error for problems that the user can solve."""


class UserError(Exception):
    """A problem that the user can solve; its text is the whole message.

    The command-line tools print it without a traceback and end with exit
    code 2, see :func:`sigplug.cli.process.run_tool`.
    """
