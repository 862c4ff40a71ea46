//! Files that change, break and end, and what is in use meanwhile.
