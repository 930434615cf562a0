"""Change or interrupt the training of a run in this process."""

import os
import signal

from transformers import TrainerCallback

from dandap.training import run as training_run


def change_trainer(monkeypatch, change):
    """Call `change` with each trainer before it trains."""
    real = training_run.make_trainer

    def make(*args):
        trainer = real(*args)
        change(trainer)
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)


class CallAtStep(TrainerCallback):
    """Call a function at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def at_step(monkeypatch, step, action):
    """Call a function at the end of a step, before the trainer's callbacks."""
    call = CallAtStep(step, action)
    change_trainer(monkeypatch, lambda trainer: trainer.callback_handler.callbacks.insert(0, call))


def send(number=signal.SIGTERM):
    """Send this process a signal."""
    os.kill(os.getpid(), number)
