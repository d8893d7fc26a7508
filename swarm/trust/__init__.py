"""Who is who and who may do what: keys, certificates, and the founder's word."""
