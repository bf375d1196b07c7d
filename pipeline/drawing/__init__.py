"""Pictures from arrays: colours of label maps, overlays, legends."""
