"""What a run of a profile will take: units, images, hours and disk, by the seconds of earlier runs."""
