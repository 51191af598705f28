# A person at the console.
setsid cttyhack sh
