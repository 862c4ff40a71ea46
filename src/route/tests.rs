//! `find` by behaviour, and against the reference in `explain` over random tables.
