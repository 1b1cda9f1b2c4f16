"""The refiner: a small learned reconstructor that corrects the canvas, which it begins as."""
