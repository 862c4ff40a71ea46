//! What meters, control law and shedding do together, to clients.

mod simulation;
