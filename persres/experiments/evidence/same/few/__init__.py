"""What parts compute outside of the chain, cut down to a few steps and pictures: each file is run as a script by both checkouts.

They use only what both have, write into the folder that the chain published to, in its form, and print nothing. Arguments of each: the
settings' file, the profile, the work folder, the published folder. ``learned/*/*.safetensors``, ``samples/*/*.zip`` and
``rows/*.parquet`` (columns method, concept, prompt, image, and numbers) are compared as the chain's own are.
"""
