"""Search over training: what is tried (`search`), how it goes (`running`, `driver`), a trial (`trial`)."""

from eagleray.tuning.record import Trial, best_of, winner_of
from eagleray.tuning.search import Suggester, make_suggester, max_concurrent

__all__ = ["Suggester", "Trial", "best_of", "make_suggester", "max_concurrent", "winner_of"]
