"""The stages from an image to a scene and back: plan jobs, run them, write what they find."""
