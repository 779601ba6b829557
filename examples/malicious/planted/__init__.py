"""An app whose server plants weights in the model that it sends."""
