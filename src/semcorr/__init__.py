"""semcorr: given a point on an object in one image, find the same point on another of its kind.

benchmark files -data-> PairBatch -backbone-> FeatureMap -head-> similarity (b n h w)
-localise-> cells -coords-> keypoints -> predictions table -metrics-> numbers
"""

__version__ = "0.1.0"
