//! Settings: as they were signed by any version, and as a person types them.

use damselfly_messages::config::Settings;

pub(crate) fn run(bytes: &[u8]) {
    if let Ok(settings) = Settings::from_signed(bytes) {
        assert_eq!(settings.validate(), Ok(()), "settings that were accepted are in their ranges");
    }
}
