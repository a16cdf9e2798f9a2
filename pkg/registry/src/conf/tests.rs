//! Reading, merging, matching.
