//! The backend without a CPU: encodings, ASIDs, the MSR map.
