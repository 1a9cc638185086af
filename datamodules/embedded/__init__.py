"""Images that the code draws itself: digits from the fonts of matplotlib, and rendered scenes of labelled objects."""
