"""A progress bar with scores."""

from collections.abc import Mapping

from transformers.trainer_callback import ProgressCallback


class ScoreBar(ProgressCallback):
    """The Trainer's progress bar with the latest loss and scores at its end, instead of lines of logs.

    Args:
        names: What to show besides the loss: what each entry of the log is called there.
    """

    def __init__(self, names: Mapping[str, str]):
        super().__init__()
        self.names, self.shown = {"loss": "loss", **names}, {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show what is new."""
        self.shown |= {self.names[key]: f"{float(value):.3f}" for key, value in logs.items() if key in self.names}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.shown)
