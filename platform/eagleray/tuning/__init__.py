"""Search over training: what is tried (`search`), a trial in its actor (`trial`), Ray Tune (`driver`)."""

from eagleray.tuning.record import Trial, best_of, winner_of
from eagleray.tuning.search import Suggester, make_suggester, max_concurrent

__all__ = ["Suggester", "Trial", "best_of", "make_suggester", "max_concurrent", "winner_of"]
