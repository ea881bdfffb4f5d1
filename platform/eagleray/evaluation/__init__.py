"""What a run or a model is worth: metrics, a judgement in words, pictures, a report.

Only arrays come in: `workflows/evaluate.py` asks the predictor and the dataset for them.
"""

from eagleray.evaluation.classification import Classification, classification
from eagleray.evaluation.curves import plot_curves
from eagleray.evaluation.fit import check_fit, classes_of
from eagleray.evaluation.judgement import Evidence, Judgement, judge, validation_curve
from eagleray.evaluation.language import Language, LanguageSums
from eagleray.evaluation.metrics import Loss, Metrics
from eagleray.evaluation.page import html
from eagleray.evaluation.pictures import draw
from eagleray.evaluation.regression import Regression, regression
from eagleray.evaluation.report import Picture, Report, lines

__all__ = [
    "Classification",
    "Evidence",
    "Judgement",
    "Language",
    "LanguageSums",
    "Loss",
    "Metrics",
    "Picture",
    "Regression",
    "Report",
    "check_fit",
    "classes_of",
    "classification",
    "draw",
    "html",
    "judge",
    "lines",
    "plot_curves",
    "regression",
    "validation_curve",
]
