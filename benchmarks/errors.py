"""What a user can mend."""

from conversion.command import ConversionError


class BenchmarkError(ConversionError):
    """Something that cannot be measured; the message is one line: what, its value, the rule and the way out."""
