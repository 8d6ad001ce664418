-- It says how many events there are, too, and what a function returns cannot be changed in place: the
-- procedures that follow make it anew.

drop function if exists token_tracking_raw.record_canonical_batch(json, timestamptz, timestamptz);
