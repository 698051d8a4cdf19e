"""A network and cases to maps: windows, blending and the prediction of whole cases."""
