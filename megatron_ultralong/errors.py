"""The one exception that means "the user can mend this".

Command lines (`megatron_ultralong.cli`) print a `UserError` as one sentence and exit with status 2;
anything else is a bug of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A bad input. The message is one sentence: the file, line or field, its value, and the mend."""
