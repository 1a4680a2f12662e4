"""Semantic segmentation with mmsegmentation: the only door to mmseg, mmengine and mmcv."""
