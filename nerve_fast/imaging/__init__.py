"""Images in and pictures out: decoding, resampling, tiling, drawing."""
