"""What all detectors are made of: parameters, passes, thresholds."""
