"""An orderly stop: the step is ended and saved, on all processes."""

import signal

import torch
from transformers import TrainerCallback

from dandap.model.distributed import process_count


class StopSignals(TrainerCallback):
    """Lets the step end and be saved on SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal).

    A second signal ends training at once. Use it as a context around training; `received` then
    names the signal, if one came.
    """

    received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # nohup has SIGHUP ignored, and a shell SIGINT of what runs in the background: that stays.
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(
            f"{self.received.name}: finishing this step and saving; once more to stop at once",
            flush=True,
        )

    def on_step_end(self, args, state, control, **kwargs):
        number = _on_any_process(self.received or 0, args.device)
        if number:
            self.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True


def _on_any_process(number: int, device: torch.device) -> int:
    """Return the largest of all processes' numbers.

    What one process is told, all are, and they stop after the same step.
    """
    if process_count() == 1:
        return number
    asked = torch.tensor(number, device=device)
    torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
    return int(asked)
