#![no_std]
//! What the kernel side and the user side share.
