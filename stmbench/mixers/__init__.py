"""Spatial token mixers: one file each, unaware of one another and of the backbone.

A mixer is an `nn.Module` that maps (B, H, W, C), contiguous and channels-last, to the same shape for any H
and W of at least 1, every image by itself, and says by `macs(height, width)` how many multiply-accumulates
one image costs (`stmbench.record.Macs`).
"""
