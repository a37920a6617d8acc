"""The paper's rivals, each a file: what trains, what is saved, how it conditions sampling."""
