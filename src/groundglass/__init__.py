"""Tell COVID-19 pneumonia from everything else on lung CT slices with Mask-EfficientNet."""

__version__ = "0.1.0"
