//! Applications beside training and serving, each read alone: curation of data sets ([`curate`]), HTML pages
//! ([`report`]), measurements and predictions of speed ([`measure`]), the demo ([`showcase`]), and a load generator for
//! servers ([`loadgen`]).

pub mod curate;
pub mod loadgen;
pub mod measure;
pub mod report;
pub mod showcase;

use reel_support::error;
