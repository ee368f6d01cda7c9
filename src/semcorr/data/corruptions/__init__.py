"""Corruptions of test images: noise, blur, weather and digital artefacts of ImageNet-C, in five severities."""
