"""From scores of patches to label maps: predictors, up-sampling, CRF."""
