"""Reference profile, binning and sequential drift detectors. Pure."""
