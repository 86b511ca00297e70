"""From files to a federation: data sets, partitions, and flat records with offsets."""
